// The docs page: Swagger UI, with a login of its own in place of OAuth2's form.

const dark = matchMedia("(prefers-color-scheme: dark)")
const followSystem = () => document.documentElement.classList.toggle("dark-mode", dark.matches)
followSystem()
dark.addEventListener("change", followSystem)

let reason = "" // why the login has opened by itself

/** Ask for a token; return an error in words, or "" once the page is logged in. */
async function logIn({authActions, specSelectors}, username, password) {
  try {
    const response = await fetch("token", {
      method: "POST",
      headers: {"Content-Type": "application/json"},
      body: JSON.stringify({username, password}),
    })
    const body = await response.json()
    if (!response.ok) return body.error
    const schema = specSelectors.securityDefinitions().get("bearer")
    authActions.authorize({bearer: {name: "bearer", schema, value: body.access_token, username}})
    return ""
  } catch {
    return "the API cannot be reached; try again"
  }
}

/** The dialog behind "Authorize". */
function LoginDialog(system) {
  const {React, authActions, authSelectors} = system.getSystem()
  const e = React.createElement
  const [error, setError] = React.useState(reason)
  const username = authSelectors.authorized().getIn(["bearer", "username"])
  const close = () => {
    reason = ""
    authActions.showDefinitions(false)
  }
  React.useEffect(() => {
    const closeOnEscape = event => event.key === "Escape" && close()
    document.addEventListener("keydown", closeOnEscape)
    return () => document.removeEventListener("keydown", closeOnEscape)
  }, [])

  async function submit(event) {
    event.preventDefault()
    if (username) return authActions.logout(["bearer"])
    const {username: {value: name}, password: {value: password}} = event.target.elements
    const error = await logIn(system.getSystem(), name, password)
    if (error) setError(error)
    else close()
  }

  const field = (name, label, attributes) => e("div", {className: "wrapper"},
    e("label", {htmlFor: name}, label),
    e("div", null, e("input", {id: name, name, required: true, ...attributes})))
  const fields = username ? e("p", null, `Logged in as ${username}.`) : [
    field("username", "User name", {key: "username", type: "text", autoComplete: "username", autoFocus: true}),
    field("password", "Password", {key: "password", type: "password", autoComplete: "current-password"}),
  ]
  return e("div", {className: "dialog-ux"},
    e("div", {className: "backdrop-ux", onClick: close}),
    e("div", {className: "modal-ux", role: "dialog", "aria-modal": true, "aria-labelledby": "login-title"},
      e("div", {className: "modal-ux-header"}, e("h3", {id: "login-title"}, "Log in")),
      e("form", {className: "modal-ux-content auth-container", onSubmit: submit},
        fields,
        error && !username && e("div", {className: "errors", role: "alert"}, error),
        e("div", {className: "auth-btn-wrapper"},
          e("button", {className: "btn modal-btn auth authorize"}, username ? "Log out" : "Log in"),
          e("button", {className: "btn modal-btn auth btn-done", type: "button", onClick: close}, "Close")))))
}

const ui = SwaggerUIBundle({
  url: "openapi.yaml",
  dom_id: "#docs",
  validatorUrl: null,
  plugins: [{components: {authorizationPopup: LoginDialog, ServersContainer: () => null}}],
  responseInterceptor(response) {
    if (response.status === 401) { // the token has expired, or there is none
      reason = response.obj?.reason || "log in first"
      ui.authActions.logout(["bearer"])
      ui.authActions.showDefinitions(ui.authSelectors.definitionsToAuthorize())
    }
    return response
  },
})
