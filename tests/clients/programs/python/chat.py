"""The openai package: one whole answer, then one in pieces."""

import openai

client = openai.OpenAI()
whole = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
print(whole.choices[0].message.content)
pieces = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
print("".join(piece.choices[0].delta.content or "" for piece in pieces))
