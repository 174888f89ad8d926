from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class SyncRequest(_message.Message):
    __slots__ = ("bundle_digest", "bundle_generation", "workloads", "pending", "refused", "waiting_for", "issuer_epoch", "outdated")
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_GENERATION_FIELD_NUMBER: _ClassVar[int]
    WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    ISSUER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    OUTDATED_FIELD_NUMBER: _ClassVar[int]
    bundle_digest: str
    bundle_generation: int
    workloads: int
    pending: int
    refused: int
    waiting_for: _containers.RepeatedScalarFieldContainer[str]
    issuer_epoch: int
    outdated: int
    def __init__(self, bundle_digest: _Optional[str] = ..., bundle_generation: _Optional[int] = ..., workloads: _Optional[int] = ..., pending: _Optional[int] = ..., refused: _Optional[int] = ..., waiting_for: _Optional[_Iterable[str]] = ..., issuer_epoch: _Optional[int] = ..., outdated: _Optional[int] = ...) -> None: ...

class SyncResponse(_message.Message):
    __slots__ = ("roots", "bundle_generation", "issuer_epoch", "poll_after_ms", "renew_within_s")
    ROOTS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_GENERATION_FIELD_NUMBER: _ClassVar[int]
    ISSUER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    POLL_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    RENEW_WITHIN_S_FIELD_NUMBER: _ClassVar[int]
    roots: _containers.RepeatedScalarFieldContainer[str]
    bundle_generation: int
    issuer_epoch: int
    poll_after_ms: int
    renew_within_s: int
    def __init__(self, roots: _Optional[_Iterable[str]] = ..., bundle_generation: _Optional[int] = ..., issuer_epoch: _Optional[int] = ..., poll_after_ms: _Optional[int] = ..., renew_within_s: _Optional[int] = ...) -> None: ...
