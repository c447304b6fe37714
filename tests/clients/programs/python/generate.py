"""The google-genai package: one whole answer, then one in pieces."""

from google import genai

client = genai.Client()
print(client.models.generate_content(model="m", contents="hi").text)
print("".join(piece.text for piece in client.models.generate_content_stream(model="m", contents="hi")))
