// S3, STS and SQS by the AWS SDK for JavaScript, with the placeholder keys of the environment.
import https from "node:https";
import { Readable } from "node:stream";
import { NodeHttpHandler } from "@smithy/node-http-handler";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";
import {
  CompleteMultipartUploadCommand, CreateMultipartUploadCommand, GetObjectCommand, ListObjectsV2Command, PutObjectCommand,
  S3Client, UploadPartCommand,
} from "@aws-sdk/client-s3";
import { SendMessageCommand, SQSClient } from "@aws-sdk/client-sqs";
import { GetCallerIdentityCommand, STSClient } from "@aws-sdk/client-sts";

const region = process.env.AWS_REGION;
// The SDK makes an agent of its own, which reads no proxy from the environment; Node's own does.
const requestHandler = new NodeHttpHandler({ httpsAgent: https.globalAgent });
const s3 = new S3Client({ region, requestHandler });
const Bucket = "reports";

await s3.send(new PutObjectCommand({ Bucket, Key: "may 1/ü+x", Body: "hello", Metadata: { team: "pay ments" } }));
const got = await s3.send(new GetObjectCommand({ Bucket, Key: "may 1/ü+x", Range: "bytes=0-4" }));
console.log(await got.Body.transformToString());
const list = await s3.send(new ListObjectsV2Command({ Bucket, Prefix: "may 1/", MaxKeys: 2 }));
console.log(list.Contents.map((one) => one.Key).join());
const stream = Readable.from([Buffer.alloc(70_000, "a"), Buffer.alloc(70_000, "b")]);
await s3.send(new PutObjectCommand({ Bucket, Key: "stream", Body: stream, ContentLength: 140_000 }));
const { UploadId } = await s3.send(new CreateMultipartUploadCommand({ Bucket, Key: "large" }));
const part = await s3.send(
  new UploadPartCommand({ Bucket, Key: "large", UploadId, PartNumber: 1, Body: Buffer.alloc(6 * 1024 * 1024, "p") }),
);
await s3.send(new CompleteMultipartUploadCommand({
  Bucket, Key: "large", UploadId, MultipartUpload: { Parts: [{ ETag: part.ETag, PartNumber: 1 }] },
}));
const url = await getSignedUrl(s3, new GetObjectCommand({ Bucket, Key: "signed" }), { expiresIn: 300 });
const answer = await fetch(url);
console.log("GET", answer.status, await answer.text());
const identity = await new STSClient({ region, requestHandler }).send(new GetCallerIdentityCommand({}));
console.log(identity.Account);
const sent = await new SQSClient({ region, requestHandler }).send(
  new SendMessageCommand({ QueueUrl: `https://sqs.${region}.amazonaws.com/123456789012/queue`, MessageBody: "hello" }),
);
console.log(sent.MessageId);
