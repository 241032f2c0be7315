// A client of the vendor's jobs API, written from a description of its wire format alone:
//   KIE_BASE_URL=… KIE_API_KEY=… node client.mjs MODEL FIELD IMAGE_URL FILE [NAME=VALUE …]
// FIELD is the model's image field; one that ends in [] takes a list.
import { writeFile } from "node:fs/promises";

const [model, field, image, file, ...options] = process.argv.slice(2);
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

async function call(method, path, body) {
  for (;;) {
    const response = await fetch(process.env.KIE_BASE_URL + path, {
      method,
      headers: { Authorization: `Bearer ${process.env.KIE_API_KEY}`, "Content-Type": "application/json" },
      body: body && JSON.stringify(body),
    });
    const answer = await response.json();
    if (answer.code !== 429) return answer; // the status may be 200 all the same
    await sleep(1);
  }
}

function expect(answer, code, message) {
  if (answer.code !== code || !answer.msg.includes(message)) throw new Error(JSON.stringify(answer));
  return answer.data;
}

// Test the key without a charge: an unknown task, and a submit that is refused.
expect(await call("GET", "/api/v1/jobs/recordInfo?taskId=test"), 422, "recordInfo is null");
const probe = await call("POST", "/api/v1/jobs/createTask", { model, input: { prompt: "" } });
if (probe.msg !== "prompt is required") throw new Error(JSON.stringify(probe));

const input = { prompt: "Remove all text from the image", ...Object.fromEntries(options.map((o) => o.split("="))) };
input[field.replace("[]", "")] = field.endsWith("[]") ? [image] : image;
const { taskId } = expect(await call("POST", "/api/v1/jobs/createTask", { model, input }), 200, "success");

let record;
do {
  await sleep(0.05);
  record = expect(await call("GET", `/api/v1/jobs/recordInfo?taskId=${taskId}`), 200, "success");
} while (["waiting", "queuing", "generating"].includes(record.state));
if (record.state !== "success") throw new Error(`${record.failCode}: ${record.failMsg}`);
if (JSON.parse(JSON.parse(record.param).input).prompt !== input.prompt) throw new Error("not the task of this request");

const { resultUrls } = record.response ?? JSON.parse(record.resultJson);
await writeFile(file, Buffer.from(await (await fetch(resultUrls[0])).arrayBuffer()));
console.log(JSON.stringify({ taskId, credits: record.creditsConsumed ?? null }));
