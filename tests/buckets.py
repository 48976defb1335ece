"""A bucket for tests, on a server that speaks S3: moto's."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import boto3
import pytest
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

#: What is put into the bucket: each path, and its condition.
Puts = list[tuple[str, str | None]]


@contextmanager
def bucket(environment: pytest.MonkeyPatch) -> Iterator[tuple[str, Puts]]:
    """The URL of an empty folder in a bucket, reached by what is in the environment from here on, and what is put there.

    S3 takes a condition and its write as one step. moto's threads do not, so they are let in one by one here.
    """
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = {"ENDPOINT_URL": f"http://{host}:{port}", "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    for name, value in {**endpoint, "ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any"}.items():
        environment.setenv(f"AWS_{name}", value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    puts: Puts = []
    put, lock = S3Response.put_object, Lock()

    def one_by_one(response: S3Response, *args: Any) -> Any:
        with lock:
            puts.append((response.path, response.headers.get("If-None-Match")))
            return put(response, *args)

    environment.setattr(S3Response, "put_object", one_by_one)
    try:
        yield f"s3://bucket/{uuid.uuid4().hex}/store", puts
    finally:
        server.stop()
