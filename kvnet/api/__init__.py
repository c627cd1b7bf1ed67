"""What the daemon tells the SDK and the CLI: the twins of proto/kvnet/v1/control.proto.

Field names are what `--json` prints and what others rely on; they do not change.
"""

from kvnet.api.alignments import (
    AlignmentExport,
    AlignmentInfo,
    ArmReport,
    CurvePoint,
    Difference,
    Evaluation,
    Explanation,
    MapSummary,
    PackagedAlignment,
    TrainProgress,
    TrainReport,
)
from kvnet.api.replies import (
    Answer,
    Calibration,
    ExportReport,
    InboxMessage,
    KvReport,
    LayerProgress,
    MemoryInfo,
    NodeStatus,
    PackReport,
    PeerInfo,
    Progress,
    SendReport,
)

__all__ = [
    "AlignmentExport",
    "AlignmentInfo",
    "Answer",
    "ArmReport",
    "Calibration",
    "CurvePoint",
    "Difference",
    "Evaluation",
    "Explanation",
    "ExportReport",
    "InboxMessage",
    "KvReport",
    "LayerProgress",
    "MapSummary",
    "MemoryInfo",
    "NodeStatus",
    "PackReport",
    "PackagedAlignment",
    "PeerInfo",
    "Progress",
    "SendReport",
    "TrainProgress",
    "TrainReport",
]
