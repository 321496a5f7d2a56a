"""The reference with which the network is compared, and its file next to checkpoints."""

from ._reference import Reference as Reference
from ._reference import snapshot as snapshot
from ._reference_file import ReferenceFile as ReferenceFile
from ._reference_file import with_theta_0 as with_theta_0
