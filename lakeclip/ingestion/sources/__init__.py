"""Sources: readers that yield a `Sample` for each image-caption pair, and a `Rejected` for each unusable item.

To read another kind of data, subclass `FileSource` and register a function that opens it with `register_source`.
"""

from lakeclip.ingestion.sources.base import Account as Account
from lakeclip.ingestion.sources.base import Sample as Sample
from lakeclip.ingestion.sources.base import Samples as Samples
from lakeclip.ingestion.sources.base import Source as Source
from lakeclip.ingestion.sources.files import FileSource as FileSource
from lakeclip.ingestion.sources.format import SourceOptions as SourceOptions
from lakeclip.ingestion.sources.registry import register_source as register_source
from lakeclip.ingestion.sources.registry import unregister_source as unregister_source
from lakeclip.lake.folder.records import Rejected as Rejected
