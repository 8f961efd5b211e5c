// In "Authorize" only the log-in form takes the focus, not the forms for a token below it (swagger-ui#7711).
const withoutFocus = (Input, {React}) => props => React.createElement(Input, {...props, autoFocus: false})
SwaggerUIBundle({
  url: "openapi.yaml", dom_id: "#docs", validatorUrl: null, plugins: [{wrapComponents: {Input: withoutFocus}}],
})
