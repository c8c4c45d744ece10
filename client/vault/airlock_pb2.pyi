from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METHOD_UNSET: _ClassVar[Method]
    METHOD_SUPERVISED: _ClassVar[Method]
    METHOD_SELF_TRAINING: _ClassVar[Method]
    METHOD_PAPER: _ClassVar[Method]
    METHOD_KNOWMINE: _ClassVar[Method]

class BatchNorm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BATCH_NORM_UNSET: _ClassVar[BatchNorm]
    BATCH_NORM_AVERAGE: _ClassVar[BatchNorm]
    BATCH_NORM_LOCAL: _ClassVar[BatchNorm]

class Orientation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORIENTATION_UNSET: _ClassVar[Orientation]
    ORIENTATION_UPRIGHT: _ClassVar[Orientation]
    ORIENTATION_ANY: _ClassVar[Orientation]

class UseSam(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    USE_SAM_UNSET: _ClassVar[UseSam]
    USE_SAM_GATED: _ClassVar[UseSam]
    USE_SAM_ALWAYS: _ClassVar[UseSam]
    USE_SAM_NEVER: _ClassVar[UseSam]

class Gate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GATE_UNSET: _ClassVar[Gate]
    GATE_UNUSED: _ClassVar[Gate]
    GATE_ON: _ClassVar[Gate]
    GATE_OFF: _ClassVar[Gate]
    GATE_UNCALIBRATED: _ClassVar[Gate]
    GATE_POOLED: _ClassVar[Gate]
METHOD_UNSET: Method
METHOD_SUPERVISED: Method
METHOD_SELF_TRAINING: Method
METHOD_PAPER: Method
METHOD_KNOWMINE: Method
BATCH_NORM_UNSET: BatchNorm
BATCH_NORM_AVERAGE: BatchNorm
BATCH_NORM_LOCAL: BatchNorm
ORIENTATION_UNSET: Orientation
ORIENTATION_UPRIGHT: Orientation
ORIENTATION_ANY: Orientation
USE_SAM_UNSET: UseSam
USE_SAM_GATED: UseSam
USE_SAM_ALWAYS: UseSam
USE_SAM_NEVER: UseSam
GATE_UNSET: Gate
GATE_UNUSED: Gate
GATE_ON: Gate
GATE_OFF: Gate
GATE_UNCALIBRATED: Gate
GATE_POOLED: Gate

class Chunk(_message.Message):
    __slots__ = ("tensor", "data")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    tensor: int
    data: bytes
    def __init__(self, tensor: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("images", "fused", "gram", "target", "empty", "empty_predicted", "empty_right")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    FUSED_FIELD_NUMBER: _ClassVar[int]
    GRAM_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    EMPTY_FIELD_NUMBER: _ClassVar[int]
    EMPTY_PREDICTED_FIELD_NUMBER: _ClassVar[int]
    EMPTY_RIGHT_FIELD_NUMBER: _ClassVar[int]
    images: int
    fused: _containers.RepeatedScalarFieldContainer[float]
    gram: _containers.RepeatedScalarFieldContainer[float]
    target: _containers.RepeatedScalarFieldContainer[float]
    empty: int
    empty_predicted: int
    empty_right: int
    def __init__(self, images: _Optional[int] = ..., fused: _Optional[_Iterable[float]] = ..., gram: _Optional[_Iterable[float]] = ..., target: _Optional[_Iterable[float]] = ..., empty: _Optional[int] = ..., empty_predicted: _Optional[int] = ..., empty_right: _Optional[int] = ...) -> None: ...

class Question(_message.Message):
    __slots__ = ("protocol",)
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    def __init__(self, protocol: _Optional[int] = ...) -> None: ...

class TaskPart(_message.Message):
    __slots__ = ("task", "weights")
    TASK_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    task: Task
    weights: Chunk
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., weights: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("round", "rounds", "method", "seed", "training", "mining", "calibration")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    MINING_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    round: int
    rounds: int
    method: Method
    seed: int
    training: Training
    mining: Mining
    calibration: Calibration
    def __init__(self, round: _Optional[int] = ..., rounds: _Optional[int] = ..., method: _Optional[_Union[Method, str]] = ..., seed: _Optional[int] = ..., training: _Optional[_Union[Training, _Mapping]] = ..., mining: _Optional[_Union[Mining, _Mapping]] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ...) -> None: ...

class Training(_message.Message):
    __slots__ = ("steps", "batch", "learning_rate", "fedprox", "batch_norm", "orientation")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    FEDPROX_FIELD_NUMBER: _ClassVar[int]
    BATCH_NORM_FIELD_NUMBER: _ClassVar[int]
    ORIENTATION_FIELD_NUMBER: _ClassVar[int]
    steps: int
    batch: int
    learning_rate: float
    fedprox: float
    batch_norm: BatchNorm
    orientation: Orientation
    def __init__(self, steps: _Optional[int] = ..., batch: _Optional[int] = ..., learning_rate: _Optional[float] = ..., fedprox: _Optional[float] = ..., batch_norm: _Optional[_Union[BatchNorm, str]] = ..., orientation: _Optional[_Union[Orientation, str]] = ...) -> None: ...

class Mining(_message.Message):
    __slots__ = ("warmup_rounds", "images", "fraction", "sam", "strong", "cut_mix", "renew")
    WARMUP_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    SAM_FIELD_NUMBER: _ClassVar[int]
    STRONG_FIELD_NUMBER: _ClassVar[int]
    CUT_MIX_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    warmup_rounds: int
    images: int
    fraction: float
    sam: UseSam
    strong: float
    cut_mix: float
    renew: float
    def __init__(self, warmup_rounds: _Optional[int] = ..., images: _Optional[int] = ..., fraction: _Optional[float] = ..., sam: _Optional[_Union[UseSam, str]] = ..., strong: _Optional[float] = ..., cut_mix: _Optional[float] = ..., renew: _Optional[float] = ...) -> None: ...

class Introduction(_message.Message):
    __slots__ = ("protocol", "model_fingerprint", "labelled", "unlabelled", "calibration", "test", "isolation")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    UNLABELLED_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    TEST_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    model_fingerprint: int
    labelled: int
    unlabelled: int
    calibration: int
    test: int
    isolation: Isolation
    def __init__(self, protocol: _Optional[int] = ..., model_fingerprint: _Optional[int] = ..., labelled: _Optional[int] = ..., unlabelled: _Optional[int] = ..., calibration: _Optional[int] = ..., test: _Optional[int] = ..., isolation: _Optional[_Union[Isolation, _Mapping]] = ...) -> None: ...

class Isolation(_message.Message):
    __slots__ = ("no_network", "no_sockets", "no_keys")
    NO_NETWORK_FIELD_NUMBER: _ClassVar[int]
    NO_SOCKETS_FIELD_NUMBER: _ClassVar[int]
    NO_KEYS_FIELD_NUMBER: _ClassVar[int]
    no_network: bool
    no_sockets: bool
    no_keys: bool
    def __init__(self, no_network: bool = ..., no_sockets: bool = ..., no_keys: bool = ...) -> None: ...

class UpdatePart(_message.Message):
    __slots__ = ("update", "weights")
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    update: Update
    weights: Chunk
    def __init__(self, update: _Optional[_Union[Update, _Mapping]] = ..., weights: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("round", "labelled", "pseudo_labelled", "loss", "seconds", "mined")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    PSEUDO_LABELLED_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MINED_FIELD_NUMBER: _ClassVar[int]
    round: int
    labelled: int
    pseudo_labelled: int
    loss: float
    seconds: float
    mined: Mined
    def __init__(self, round: _Optional[int] = ..., labelled: _Optional[int] = ..., pseudo_labelled: _Optional[int] = ..., loss: _Optional[float] = ..., seconds: _Optional[float] = ..., mined: _Optional[_Union[Mined, _Mapping]] = ...) -> None: ...

class Mined(_message.Message):
    __slots__ = ("kept", "dropped", "empty", "gate", "fuse_weight", "mean_agreement", "mean_quality")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    EMPTY_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    FUSE_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MEAN_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    MEAN_QUALITY_FIELD_NUMBER: _ClassVar[int]
    kept: int
    dropped: int
    empty: int
    gate: Gate
    fuse_weight: float
    mean_agreement: float
    mean_quality: float
    def __init__(self, kept: _Optional[int] = ..., dropped: _Optional[int] = ..., empty: _Optional[int] = ..., gate: _Optional[_Union[Gate, str]] = ..., fuse_weight: _Optional[float] = ..., mean_agreement: _Optional[float] = ..., mean_quality: _Optional[float] = ...) -> None: ...

class Scores(_message.Message):
    __slots__ = ("round", "test_images", "dice", "iou", "hd95", "calibration")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TEST_IMAGES_FIELD_NUMBER: _ClassVar[int]
    DICE_FIELD_NUMBER: _ClassVar[int]
    IOU_FIELD_NUMBER: _ClassVar[int]
    HD95_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    round: int
    test_images: int
    dice: float
    iou: float
    hd95: float
    calibration: Calibration
    def __init__(self, round: _Optional[int] = ..., test_images: _Optional[int] = ..., dice: _Optional[float] = ..., iou: _Optional[float] = ..., hd95: _Optional[float] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ...) -> None: ...
