from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Introduction(_message.Message):
    __slots__ = ("software", "wire")
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    WIRE_FIELD_NUMBER: _ClassVar[int]
    software: str
    wire: int
    def __init__(self, software: _Optional[str] = ..., wire: _Optional[int] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("run", "software", "config", "labels", "task", "text_column", "label_column", "tokenizer_hash", "weights_hash", "tokens", "held_out", "parts", "side", "template", "tasks", "frames")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    TEXT_COLUMN_FIELD_NUMBER: _ClassVar[int]
    LABEL_COLUMN_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_HASH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    run: str
    software: str
    config: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    task: str
    text_column: str
    label_column: str
    tokenizer_hash: str
    weights_hash: str
    tokens: int
    held_out: float
    parts: _containers.RepeatedScalarFieldContainer[str]
    side: int
    template: str
    tasks: str
    frames: int
    def __init__(self, run: _Optional[str] = ..., software: _Optional[str] = ..., config: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., task: _Optional[str] = ..., text_column: _Optional[str] = ..., label_column: _Optional[str] = ..., tokenizer_hash: _Optional[str] = ..., weights_hash: _Optional[str] = ..., tokens: _Optional[int] = ..., held_out: _Optional[float] = ..., parts: _Optional[_Iterable[str]] = ..., side: _Optional[int] = ..., template: _Optional[str] = ..., tasks: _Optional[str] = ..., frames: _Optional[int] = ...) -> None: ...

class Registration(_message.Message):
    __slots__ = ("run", "rows", "rank", "precision", "hardware", "terms", "records")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    run: str
    rows: int
    rank: int
    precision: str
    hardware: str
    terms: PrivacyTerms
    records: int
    def __init__(self, run: _Optional[str] = ..., rows: _Optional[int] = ..., rank: _Optional[int] = ..., precision: _Optional[str] = ..., hardware: _Optional[str] = ..., terms: _Optional[_Union[PrivacyTerms, _Mapping]] = ..., records: _Optional[int] = ...) -> None: ...

class PrivacyTerms(_message.Message):
    __slots__ = ("noise", "rate", "releases", "dp_delta", "epsilon", "start")
    NOISE_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    DP_DELTA_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    noise: float
    rate: float
    releases: int
    dp_delta: float
    epsilon: float
    start: float
    def __init__(self, noise: _Optional[float] = ..., rate: _Optional[float] = ..., releases: _Optional[int] = ..., dp_delta: _Optional[float] = ..., epsilon: _Optional[float] = ..., start: _Optional[float] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("integer", "number", "text", "flag", "integers")
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    integer: int
    number: float
    text: str
    flag: bool
    integers: Integers
    def __init__(self, integer: _Optional[int] = ..., number: _Optional[float] = ..., text: _Optional[str] = ..., flag: bool = ..., integers: _Optional[_Union[Integers, _Mapping]] = ...) -> None: ...

class Integers(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, items: _Optional[_Iterable[int]] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("name", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class Statement(_message.Message):
    __slots__ = ("content", "signature", "certificate")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    signature: bytes
    certificate: bytes
    def __init__(self, content: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("task", "fields", "payloads", "statement")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    task: str
    fields: _containers.MessageMap[str, Value]
    payloads: _containers.RepeatedCompositeFieldContainer[Payload]
    statement: Statement
    def __init__(self, task: _Optional[str] = ..., fields: _Optional[_Mapping[str, Value]] = ..., payloads: _Optional[_Iterable[_Union[Payload, _Mapping]]] = ..., statement: _Optional[_Union[Statement, _Mapping]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("header", "chunk", "finished", "record")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    header: Header
    chunk: bytes
    finished: Finished
    record: Statement
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., chunk: _Optional[bytes] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., record: _Optional[_Union[Statement, _Mapping]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("verdict",)
    class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Receipt.Verdict]
        TAKEN: _ClassVar[Receipt.Verdict]
        KNOWN: _ClassVar[Receipt.Verdict]
        LATE: _ClassVar[Receipt.Verdict]
    UNSPECIFIED: Receipt.Verdict
    TAKEN: Receipt.Verdict
    KNOWN: Receipt.Verdict
    LATE: Receipt.Verdict
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    verdict: Receipt.Verdict
    def __init__(self, verdict: _Optional[_Union[Receipt.Verdict, str]] = ...) -> None: ...
