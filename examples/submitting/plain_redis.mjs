// Queue an edit from Node 18 or newer, without packages: one LPUSH with the message by hand.
//
// node plain_redis.mjs redis://localhost:6379/0 '{"image": "s3://bucket/in/cat.png", "prompt": "make it snow"}'

import { randomUUID } from "node:crypto";
import { connect } from "node:net";
import { connect as connectByTls } from "node:tls";

// The item of the list `edits`: an envelope around the task's arguments, keywords and options.
function message(jobId, job) {
  return JSON.stringify({
    "content-type": "application/json",
    "content-encoding": "utf-8",
    headers: { task: "worker.tasks.edit", id: jobId },
    properties: { delivery_tag: jobId, delivery_info: { exchange: "", routing_key: "edits" } },
    body: JSON.stringify([[job], {}, null]),
  });
}

// A command as Redis reads it: an array of strings, each with its length in bytes.
function encoded(words) {
  const parts = words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`);
  return `*${words.length}\r\n${parts.join("")}`;
}

// Send commands in one go; resolves once each is answered, rejects with the first error.
function call(url, commands) {
  const { protocol, hostname, port } = url;
  const open = protocol === "rediss:" ? connectByTls : connect;
  const socket = open({ host: hostname, port: Number(port || 6379), servername: hostname });
  return new Promise((resolve, reject) => {
    let answers = "";
    socket.on("error", reject);
    socket.on("close", () => reject(new Error("Redis hung up")));
    socket.on("data", (data) => {
      answers += data;
      const lines = answers.split("\r\n").slice(0, -1); // +OK, :1 and -ERR are a line each
      const error = lines.find((line) => line.startsWith("-"));
      if (error) reject(new Error(error.slice(1)));
      else if (lines.length === commands.length) resolve();
      else return;
      socket.end();
    });
    socket.write(commands.map(encoded).join(""));
  });
}

const [address, text] = process.argv.slice(2);
const url = new URL(address);
const job = JSON.parse(text);
const jobId = job.id ?? randomUUID();
const commands = [["LPUSH", "edits", message(jobId, job)]];
if (url.pathname.length > 1) commands.unshift(["SELECT", url.pathname.slice(1)]);
if (url.password) commands.unshift(["AUTH", ...[url.username, url.password].filter(Boolean).map(decodeURIComponent)]);
await call(url, commands);
console.log(jobId);
