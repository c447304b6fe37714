"""The anthropic package: one whole message, then one in pieces."""

import anthropic

client = anthropic.Anthropic()
ask = {"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": "hi"}]}
print(client.messages.create(**ask).content[0].text)
with client.messages.stream(**ask) as stream:
    print("".join(stream.text_stream))
