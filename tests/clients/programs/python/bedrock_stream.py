"""boto3, unchanged: a conversation of Bedrock that streams its answer."""

import boto3

client = boto3.client("bedrock-runtime", region_name="eu-west-1")
answer = client.converse_stream(
    modelId="eu.amazon.nova-lite-v1:0",
    messages=[{"role": "user", "content": [{"text": "hi"}]}],
)
for event in answer["stream"]:
    if "contentBlockDelta" in event:
        print(event["contentBlockDelta"]["delta"]["text"], flush=True)
    if "messageStop" in event:
        print(event["messageStop"]["stopReason"])
