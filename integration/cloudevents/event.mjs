// Reads a request as {"headers", "body"} from standard input and prints the event
// that the SDK makes of it. An event that is not valid ends it with an error.
import { readFileSync } from "node:fs";
import { CloudEvent, HTTP } from "cloudevents";

const event = new CloudEvent(HTTP.toEvent(JSON.parse(readFileSync(0, "utf8"))));
event.validate();
const data = event.data_base64 ? Buffer.from(event.data_base64, "base64") : event.data;
console.log(JSON.stringify({
	id: event.id,
	source: event.source,
	type: event.type,
	subject: event.subject,
	time: event.time,
	contentType: event.datacontenttype,
	upstreamStatus: event.upstreamstatus ?? 0,
	error: event.error ?? "",
	data: data === undefined ? null : Buffer.isBuffer(data) || typeof data === "string"
		? Buffer.from(data).toString("base64") : Buffer.from(JSON.stringify(data)).toString("base64"),
}));
