"""State of LocalStack that survives kill -9.

Objects: every write goes to a new file, so an overwrite never touches committed bytes and readers need no lock.
S3 metadata: after an operation and before its answer leaves, what it changed is committed to SQLite (WAL): one
row per bucket, key, unfinished upload. Files that no row names any more are removed after the commit; files
nobody names (a write that was killed) are swept at the next start.
IAM, STS, KMS: a snapshot of the service after each changing operation, before its answer.
Logs: `log_journal.py`.
CloudWatch keeps its metrics itself (PERSISTENCE=1).

Pickles tie the state to the version of LocalStack, which is pinned.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

from log_journal import LogJournal

_READS = ("Get", "List", "Head", "Select", "Describe", "Filter", "Test", "Verify")
_SNAPSHOT_SERVICES = ("iam", "kms", "sts")
_local = threading.local()


def install() -> None:
    """Replace LocalStack's object store, bring back what was stored, and commit from now on."""
    import objects
    from localstack.services.s3 import provider

    folder = Path(os.environ["LLMTUNER_S3_FOLDER"])
    (folder / "objects").mkdir(parents=True, exist_ok=True)
    store = objects.store_class()(folder / "objects")
    provider.EphemeralS3ObjectStore = lambda *_, **__: store
    keeper = Keeper(folder, store)
    _watch_key_stores()
    keeper.restore()
    from localstack.aws import handlers

    handlers.run_custom_response_handlers.append(keeper.after)


class Keeper:
    """Commits what a request changed, before its answer."""

    def __init__(self, folder: Path, store: Any) -> None:
        self.folder, self.store = folder, store
        self.lock = threading.Lock()
        self.db = sqlite3.connect(folder / "metadata.db", isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.executescript(
            "CREATE TABLE IF NOT EXISTS buckets (account TEXT, name TEXT, data BLOB, PRIMARY KEY (account, name));"
            "CREATE TABLE IF NOT EXISTS keys (bucket TEXT, key TEXT, data BLOB, files TEXT, PRIMARY KEY (bucket, key));"
            "CREATE TABLE IF NOT EXISTS uploads (bucket TEXT, id TEXT, data BLOB, files TEXT, PRIMARY KEY (bucket, id));"
            "CREATE TABLE IF NOT EXISTS services (name TEXT PRIMARY KEY, data BLOB);"
        )
        self.logs = LogJournal(self.db, self.lock)

    def after(self, _chain: Any, context: Any, response: Any) -> None:
        """LocalStack calls this for every answer, in the thread that made it; an answer that cannot be kept is an error."""
        try:
            self._keep(context)
        except sqlite3.Error as error:
            with self.lock:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
            _refuse(context, response, f"{self.folder / 'metadata.db'} cannot be written: {error}")

    def _keep(self, context: Any) -> None:
        dirty: set[tuple[int, str]] = getattr(_local, "dirty", set())
        _local.dirty = set()
        operation = getattr(context.operation, "name", "") if context.operation else ""
        if not operation or operation.startswith(_READS):
            return
        service = context.service.service_name
        if service == "s3":
            self._commit_s3(context, operation, dirty)
        elif service in _SNAPSHOT_SERVICES:
            self._commit_service(service)
        elif service == "logs" and context.service_exception is None:
            self.logs.append(context.account_id, context.region, operation, context.service_request)

    # S3

    def _commit_s3(self, context: Any, operation: str, dirty: set[tuple[int, str]]) -> None:
        from localstack.services.s3.models import s3_stores

        request = context.service_request or {}
        name = request.get("Bucket", "")
        buckets = s3_stores[context.account_id][context.region].buckets
        account = s3_stores[context.account_id][context.region].global_bucket_map.get(name, context.account_id)
        if account != context.account_id:
            buckets = s3_stores[account][context.region].buckets
        bucket = buckets.get(name)
        unlink: set[str] = set()
        with self.lock:
            self.db.execute("BEGIN")
            if bucket is None:
                unlink |= self._forget_bucket(account, name)
            else:
                if "Key" not in request and operation != "DeleteObjects":
                    self._put_bucket(account, bucket)
                keys = {key for _, key in dirty}
                if "Key" in request:
                    keys.add(request["Key"])
                for key in keys:
                    unlink |= self._put_key(bucket, key)
                identifier = request.get("UploadId") or (context.service_response or {}).get("UploadId", "")
                if identifier:
                    unlink |= self._put_upload(bucket, identifier)
            if "Tagging" in operation or "Tagging" in request or operation in ("CopyObject", "CompleteMultipartUpload"):
                self._put_tags(account, context.region)
            self.db.execute("COMMIT")
            # An object completed from an upload, or moved between versions, may share a file with another row.
            kept = self._named(unlink)
        for file in unlink - kept:
            self.store.unlink(file)

    def _forget_bucket(self, account: str, name: str) -> set[str]:
        files: set[str] = set()
        for table in ("keys", "uploads"):
            for (text,) in self.db.execute(f"SELECT files FROM {table} WHERE bucket = ?", (name,)):
                files |= set(json.loads(text))
            self.db.execute(f"DELETE FROM {table} WHERE bucket = ?", (name,))
        self.db.execute("DELETE FROM buckets WHERE account = ? AND name = ?", (account, name))
        return files

    def _put_bucket(self, account: str, bucket: Any) -> None:
        from localstack.state import pickle

        bare = object.__new__(type(bucket))
        bare.__dict__.update(bucket.__dict__, objects=type(bucket.objects)(), multiparts={})
        row = (account, bucket.name, pickle.dumps(bare))
        self.db.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?, ?)", row)
        if "Versioned" in type(bucket.objects).__name__:
            # Switching versioning on renames every version of every key in memory.
            for key in list(bucket.objects._store):
                self._put_key(bucket, key)

    def _put_key(self, bucket: Any, key: str) -> set[str]:
        """Write a key's object (or versions); returns the files its old row named and its new one does not."""
        return self._replace("keys", "key", bucket.name, key, bucket.objects._store.get(key))

    def _put_upload(self, bucket: Any, identifier: str) -> set[str]:
        return self._replace("uploads", "id", bucket.name, identifier, bucket.multiparts.get(identifier))

    def _replace(self, table: str, column: str, bucket: str, name: str, value: Any) -> set[str]:
        from localstack.state import pickle

        where = f"WHERE bucket = ? AND {column} = ?"
        row = self.db.execute(f"SELECT files FROM {table} {where}", (bucket, name)).fetchone()
        old = set(json.loads(row[0])) if row else set()
        if not value:
            self.db.execute(f"DELETE FROM {table} {where}", (bucket, name))
            return old
        files = files_of(value)
        data = pickle.dumps(value)
        self.db.execute(
            f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", (bucket, name, data, json.dumps(sorted(files)))
        )
        return old - files

    def _named(self, files: set[str]) -> set[str]:
        """Which of these files another row still names."""
        found = set()
        for file in files:
            for table in ("keys", "uploads"):
                query = f"SELECT 1 FROM {table} WHERE files LIKE ? LIMIT 1"
                if self.db.execute(query, (f'%"{file}"%',)).fetchone():
                    found.add(file)
        return found

    def _put_tags(self, account: str, region: str) -> None:
        from localstack.services.s3.models import s3_stores
        from localstack.state import pickle

        data = pickle.dumps(s3_stores[account][region].TAGS.tags)
        self.db.execute("INSERT OR REPLACE INTO services VALUES ('s3-tags', ?)", (data,))

    # other services

    def _commit_service(self, service: str) -> None:
        from localstack.state import pickle

        data = pickle.dumps(_service_state(service))
        with self.lock:
            self.db.execute("INSERT OR REPLACE INTO services VALUES (?, ?)", (service, data))

    # start

    def restore(self) -> None:
        """Bring back every committed row, then sweep files nobody names."""
        from localstack.state import pickle

        named = self._restore_s3(pickle)
        self.store.sweep(named)
        for service, data in self.db.execute("SELECT name, data FROM services"):
            if service != "s3-tags":
                _restore_service(service, pickle.loads(data))
        self.logs.replay()

    def _restore_s3(self, pickle: Any) -> set[str]:
        from localstack.services.s3.models import s3_stores

        buckets: dict[str, Any] = {}
        for account, name, data in self.db.execute("SELECT account, name, data FROM buckets"):
            bucket = buckets[name] = pickle.loads(data)
            store = s3_stores[account][bucket.bucket_region]
            store.buckets[name] = bucket
            store.global_bucket_map[name] = account
        named: set[str] = set()
        for name, key, data, files in self.db.execute("SELECT bucket, key, data, files FROM keys"):
            if name in buckets and self.store.has_all(json.loads(files)):
                buckets[name].objects._store[key] = pickle.loads(data)
                named |= set(json.loads(files))
        for name, identifier, data, files in self.db.execute("SELECT bucket, id, data, files FROM uploads"):
            if name in buckets and self.store.has_all(json.loads(files)):
                buckets[name].multiparts[identifier] = pickle.loads(data)
                named |= set(json.loads(files))
        row = self.db.execute("SELECT data FROM services WHERE name = 's3-tags'").fetchone()
        if row and buckets:
            first = next(iter(buckets.values()))
            s3_stores[first.bucket_account_id][first.bucket_region].TAGS.tags.update(pickle.loads(row[0]))
        return named


def _refuse(context: Any, response: Any, why: str) -> None:
    """Answer with an error of the service: LocalStack itself would log the failure and answer that all is well."""
    from localstack.aws.api import CommonServiceException
    from localstack.aws.protocol.serializer import create_serializer

    error = CommonServiceException("InternalError", f"{why}. Make room on its disk, then try again.", status_code=500)
    serializer = create_serializer(context.service, context.protocol)
    headers, request_id = context.request.headers, context.request_id
    response.update_from(serializer.serialize_error_to_response(error, context.operation, headers, request_id))


def files_of(value: Any) -> set[str]:
    """The object files a stored value names: an object, a dict of versions, or an upload with its parts."""
    if isinstance(value, dict):
        return {file for item in value.values() for file in files_of(item)}
    found = {value.__dict__["_file"]} if "_file" in getattr(value, "__dict__", {}) else set()
    parts = getattr(value, "parts", None)
    if isinstance(parts, dict):
        found |= {part.__dict__["_file"] for part in parts.values() if "_file" in getattr(part, "__dict__", {})}
    if hasattr(value, "object"):
        found |= files_of(value.object)
    return found


def _watch_key_stores() -> None:
    """Remember in the thread which keys an operation set or removed."""
    from localstack.services.s3 import models

    for kind in (models.KeyStore, models.VersionedKeyStore):
        for name in ("set", "pop"):
            setattr(kind, name, _remembering(getattr(kind, name)))


def _remembering(plain: Any) -> Any:
    def method(self: Any, object_key: str, *arguments: Any, **named: Any) -> Any:
        if not hasattr(_local, "dirty"):
            _local.dirty = set()
        _local.dirty.add((id(self), object_key))
        return plain(self, object_key, *arguments, **named)

    return method


def _service_state(service: str) -> dict[str, Any]:
    """What a service keeps in memory, without what AWS brings along (managed policies)."""
    found = _backends(service)
    state: dict[str, Any] = {}
    if "localstack" in found:
        state["localstack"] = found["localstack"]
    if "moto" in found:
        state["moto"] = {
            account: {region: _slim(service, backend) for region, backend in regions.items()}
            for account, regions in found["moto"].items()
        }
    return state


def _slim(service: str, backend: Any) -> dict[str, Any]:
    values = dict(backend.__dict__)
    if service == "iam":
        values.pop("account_summary", None)  # counts, computed from the backend it points to
        values["managed_policies"] = {
            arn: policy
            for arn, policy in values.get("managed_policies", {}).items()
            if not arn.startswith("arn:aws:iam::aws:")
        }
        values.pop("aws_managed_policies", None)
    return values


def _backends(service: str) -> dict[str, Any]:
    from localstack.state.inspect import ReflectionStateLocator, ServiceBackendCollectorVisitor

    visitor = ServiceBackendCollectorVisitor()
    ReflectionStateLocator(service=service).accept_state_visitor(visitor)
    # Not visitor.collect(): it leaves out backends that are empty, as all are at the start.
    found = {"localstack": visitor.store, "moto": visitor.backend_dict}
    return {name: value for name, value in found.items() if value is not None}


def _restore_service(service: str, state: dict[str, Any]) -> None:
    found = _backends(service)
    if "localstack" in state:
        for account, regions in state["localstack"].items():
            for region, store in regions.items():
                found["localstack"][account][region].__dict__.update(store.__dict__)
    for account, regions in state.get("moto", {}).items():
        for region, values in regions.items():
            backend = found["moto"][account][region]
            for name, value in values.items():
                if name == "managed_policies":
                    backend.managed_policies.update(value)
                else:
                    backend.__dict__[name] = value
