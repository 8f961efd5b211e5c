// The same table as a collection of PocketBase, and a user who may read and add courses.
migrate((app) => {
  const signedIn = "@request.auth.id != ''";
  app.save(new Collection({
    type: "base",
    name: "courses",
    listRule: signedIn,
    viewRule: signedIn,
    createRule: signedIn,
    fields: [
      { type: "text", name: "code", required: true, max: 20 },
      { type: "text", name: "name", required: true, max: 120 },
      { type: "text", name: "instructor", max: 120 },
    ],
    indexes: ["CREATE UNIQUE INDEX course_code ON courses (code)"],
  }));
  const user = new Record(app.findCollectionByNameOrId("users"));
  user.setEmail("bench@example.com");
  user.setPassword("password of bench");
  app.save(user);
});
