"""What a pipeline does to a batch: pure functions over Arrow tables, with DuckDB in memory as the only tool."""

import importlib.util
import sys

# pyarrow asks for dateutil whenever it infers a type, as in `pc.less(column, 5)`. Where there is none, each such call searches
# the disk for it: 40 microseconds instead of 3, a hundred times a batch. This answers at once.
if importlib.util.find_spec("dateutil") is None:
    sys.modules["dateutil"] = None  # type: ignore[assignment]
