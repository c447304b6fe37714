// Deno's fetch as it comes.
const answer = await fetch("https://api.example.com/v1", {
  method: "POST",
  headers: { Authorization: `Bearer ${Deno.env.get("API_KEY")}` },
  body: JSON.stringify({ question: "deno" }),
});
console.log(answer.status, await answer.text());
