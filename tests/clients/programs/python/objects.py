"""boto3 against a store that takes a key in a header: what boto3 signs with the placeholders is taken off."""

import boto3

store = boto3.client("s3", region_name="eu-west-1", endpoint_url="https://objects.example.com")
store.put_object(Bucket="reports", Key="may.txt", Body=b"hello")
print(store.get_object(Bucket="reports", Key="may.txt")["Body"].read().decode())
