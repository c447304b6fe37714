// @anthropic-ai/sdk: one whole message, then one in pieces.
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic();
const ask = { model: "m", max_tokens: 16, messages: [{ role: "user", content: "hi" }] };
const whole = await client.messages.create(ask);
console.log(whole.content[0].text);
const stream = client.messages.stream(ask);
console.log((await stream.finalMessage()).content[0].text);
