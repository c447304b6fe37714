"""boto3, unchanged, with the placeholder keys of its environment: S3, STS and SQS."""

import io
import urllib.request

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

REGION = "eu-west-1"
s3 = boto3.client("s3", region_name=REGION)
s3.put_object(Bucket="reports", Key="may 1/ä+(x)~.txt", Body=b"hello", Metadata={"by": "a  b"})
print(s3.get_object(Bucket="reports", Key="may 1/ä+(x)~.txt", Range="bytes=0-4")["Body"].read().decode())
print([entry["Key"] for entry in s3.list_objects_v2(Bucket="reports", Prefix="may 1/", Delimiter="/")["Contents"]])
# More than the proxy holds of a body, in one piece and in parts.
s3.put_object(Bucket="reports", Key="large", Body=io.BytesIO(b"x" * (9 << 20)))
parts = TransferConfig(multipart_threshold=1 << 20, multipart_chunksize=5 << 20, max_concurrency=2)
s3.upload_fileobj(io.BytesIO(b"y" * (6 << 20)), "reports", "parts", Config=parts)
# With its hash in the head, as before trailing checksums.
plain = boto3.client(
    "s3",
    region_name=REGION,
    config=Config(request_checksum_calculation="when_required", s3={"payload_signing_enabled": True}),
)
plain.put_object(Bucket="reports", Key="hashed", Body=b"hashed")
# Without the two settings boto3 presigns with Signature Version 2, and for a host without a region.
before = boto3.client(
    "s3", region_name=REGION, endpoint_url=f"https://s3.{REGION}.amazonaws.com", config=Config(signature_version="s3v4")
)
for method, name in (("PUT", "put_object"), ("GET", "get_object")):
    url = before.generate_presigned_url(name, Params={"Bucket": "reports", "Key": "signed before"}, ExpiresIn=600)
    request = urllib.request.Request(url, method=method, data=b"presigned" if method == "PUT" else None)
    print(method, urllib.request.urlopen(request).status)
print(boto3.client("sts", region_name=REGION).get_caller_identity()["Account"])
sqs = boto3.client("sqs", region_name=REGION)
print(sqs.send_message(QueueUrl=f"https://sqs.{REGION}.amazonaws.com/1/q", MessageBody="hello")["MessageId"])
try:
    boto3.client("sts", region_name="us-east-1").get_caller_identity()
except Exception as error:
    print("does not sign for the AWS region us-east-1" in str(error))
