// Node's own fetch: no agent, no option; everything comes from the environment.
const answer = await fetch("https://api.example.com/v1", {
  method: "POST",
  headers: { "content-type": "application/json", authorization: `Bearer ${process.env.API_KEY}` },
  body: JSON.stringify({ question: "fetch" }),
});
console.log(answer.status, await answer.text());
