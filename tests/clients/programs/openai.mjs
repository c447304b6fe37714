// The openai package: one whole answer, then one in pieces.
import OpenAI from "openai";

const client = new OpenAI();
const ask = { model: "m", messages: [{ role: "user", content: "hi" }] };
const whole = await client.chat.completions.create(ask);
console.log(whole.choices[0].message.content);
let text = "";
for await (const piece of await client.chat.completions.create({ ...ask, stream: true })) {
  text += piece.choices[0].delta.content ?? "";
}
console.log(text);
