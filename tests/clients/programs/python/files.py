"""The openai package: a file, sent as multipart."""

import openai

print(openai.OpenAI().files.create(file=("notes.txt", b"a note\n" * 1000), purpose="assistants").id)
