// Shows /openapi.json with Swagger UI, which the page has loaded before. Nothing is asked of another server.
/* global SwaggerUIBundle */

const answer = await fetch("/openapi.json");
const description = await answer.json();

SwaggerUIBundle({
  dom_id: "#api",
  // This release of Swagger UI shows OpenAPI 3.1 all right, but refuses what says that it is 3.1.
  spec: { ...description, openapi: "3.0.3" },
  validatorUrl: null,
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
});
