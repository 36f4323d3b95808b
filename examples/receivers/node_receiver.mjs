// A receiver of callbacks on Node 18 or newer, without packages.
//
// DG_CALLBACK_SECRET=whsec_... node node_receiver.mjs 9000
// producer submit data.csv --callback-url http://this-machine:9000/hook

import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const LONGEST_BODY_BYTES = 2 ** 21;
const MOST_SECONDS_OFF = 300; // an old callback that somebody sends again is refused
const secrets = process.env.DG_CALLBACK_SECRET.trim().split(/\s+/);
const seen = new Set(); // a real receiver asks its database: callbacks come at least once

// Whether the bytes are signed with one of the secrets, lately (https://www.standardwebhooks.com).
function isGenuine(headers, body) {
  const id = headers["webhook-id"];
  const stamp = headers["webhook-timestamp"] ?? "";
  if (!id || !/^\d{1,12}$/.test(stamp) || Math.abs(Date.now() / 1000 - Number(stamp)) > MOST_SECONDS_OFF) return false;
  const given = (headers["webhook-signature"] ?? "").split(" ").map((signature) => Buffer.from(signature));
  return secrets.some((secret) => {
    const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");
    const signature = createHmac("sha256", key).update(`${id}.${stamp}.`).update(body).digest("base64");
    const expected = Buffer.from(`v1,${signature}`);
    return given.some((one) => one.length === expected.length && timingSafeEqual(one, expected));
  });
}

async function bodyOf(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > LONGEST_BODY_BYTES) throw new Error("the body is too long");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

async function hook(request, response) {
  if (request.method !== "POST" || request.url !== "/hook") return response.writeHead(404).end();
  const body = await bodyOf(request);
  if (!isGenuine(request.headers, body)) return response.writeHead(401).end("not a callback of the service\n");
  const event = JSON.parse(body);
  const id = request.headers["webhook-id"];
  if (!seen.has(id)) {
    seen.add(id);
    console.log(event.data.job_id, event.data.state === "succeeded" ? event.data.output : event.data.error);
  }
  return response.writeHead(204).end();
}

createServer((request, response) => {
  hook(request, response).catch((error) => response.destroy(error));
}).listen(Number(process.argv[2] ?? 9000));
