// What the page says of a device: also what it lacks.

import assert from "node:assert/strict";
import { test } from "node:test";

import { features } from "../../../tapml/web/words.js";

test("a device without float16 says what that means for a float16 model", () => {
  assert.deepEqual(features({ features: ["subgroups"] }), ["subgroups", "no float16: computed in float32"]);
  assert.deepEqual(features({ features: ["float16"] }), ["float16"]);
});
