// A receiver of callbacks. npm install; CALLBACK_KEY=whsec_… node receiver.js
import { randomUUID } from "node:crypto";
import { access, link, mkdir, open, readdir, readFile, unlink, writeFile } from "node:fs/promises";
import http from "node:http";
import { Webhook } from "standardwebhooks";

const folder = "callbacks"; // <id> is a callback as it came, <id>.done says that it is handled
const maxBody = 32 << 20; // a result of 8 MiB is up to three times as long when it is encoded
const minKey = 38; // whsec_ and 24 bytes: an empty key would verify what anybody signs
const taskID = /^[0-9a-f-]{36}$/;
const verbs = { COMPLETE: "is done", FAILED: "has failed", TIMEOUT: "took too long" };
const key = process.env.CALLBACK_KEY ?? "";
if (key.length < minKey) throw new Error("CALLBACK_KEY is not a whsec_ key");
const hook = new Webhook(key);

// finish is where your own work goes. After a crash it can run again for the
// same task.
async function finish(id, status, pairs) {
  const lines = [`task ${id} ${verbs[status]}`];
  for (const [name, value] of pairs) lines.push(`${name}=${value}`);
  await new Promise((written) => process.stdout.write(lines.join("\n") + "\n", written));
}

// keep stores a callback, whole and on disk before it returns, and says whether
// it is the first with its ID.
async function keep(id, record) {
  const tmp = `${folder}/.tmp-${randomUUID()}`;
  const file = await open(tmp, "wx", 0o600);
  try {
    await file.writeFile(record);
    await file.sync();
    await link(tmp, `${folder}/${id}`); // fails if it is there
    return true;
  } catch (err) {
    if (err.code === "EEXIST") return false;
    throw err;
  } finally {
    await file.close();
    await unlink(tmp);
  }
}

// handle finishes a stored task, unless that has been done.
async function handle(id) {
  const done = `${folder}/${id}.done`;
  if (await access(done).then(() => true, () => false)) return;
  const record = await readFile(`${folder}/${id}`, "utf8");
  const end = record.indexOf("\n");
  await finish(id, record.slice(0, end), new URLSearchParams(record.slice(end + 1)));
  await writeFile(done, "");
}

async function readBody(req) {
  const chunks = [];
  let size = 0;
  for await (const chunk of req) {
    if ((size += chunk.length) > maxBody) return null;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function verified(body, headers) {
  try {
    hook.verify(body, headers, { jsonParse: false }); // the signature and its time; a form is no JSON
    return true;
  } catch {
    return false;
  }
}

async function receive(req, res) {
  const answer = (code) => res.writeHead(code).end();
  if (req.method !== "POST") return answer(405);
  const body = await readBody(req);
  if (body === null) return answer(413);
  if (!verified(body, req.headers)) return answer(401);
  const id = req.headers["webhook-id"];
  const status = req.headers["x-beam-task-status"];
  if (!taskID.test(id) || !Object.hasOwn(verbs, status)) return answer(400);
  const first = await keep(id, Buffer.concat([Buffer.from(status + "\n"), body]));
  answer(204); // a repeat too: we have it
  if (first) await handle(id);
}

await mkdir(folder, { recursive: true, mode: 0o700 });
for (const name of await readdir(folder)) {
  if (taskID.test(name)) await handle(name); // what a crash left
}
const server = http.createServer((req, res) => {
  receive(req, res).catch((err) => {
    console.error(err.message);
    if (!res.headersSent) res.writeHead(500).end(); // it comes again
  });
});
server.listen(Number(process.env.PORT ?? 9000), "127.0.0.1");
