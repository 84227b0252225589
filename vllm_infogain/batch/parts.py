"""How Ray writes finished rows: one part file per block, in one schema."""

from typing import Any

import pyarrow.parquet as pq
from ray.data.block import BlockAccessor
from ray.data.datasource import BlockBasedFileDatasink, FilenameProvider

from vllm_infogain.batch.folder import part_table


class Parts(BlockBasedFileDatasink):
    """Takes blocks with a column `output` of JSON texts. Ray commits a part and the ids of its rows together."""

    def __init__(self, path: str, file_format: str) -> None:
        # A part's name must begin as the pending mark of its rows does, by which a torn part is found and dropped.
        names = FilenameProvider(dataset_uuid="part", file_format=file_format)
        super().__init__(path, filename_provider=names, file_format=file_format)

    def write_block_to_file(self, block: BlockAccessor, file: Any) -> None:
        texts = block.to_arrow()["output"].to_pylist()
        if self.file_format == "parquet":
            pq.write_table(part_table(texts), file)
        else:
            file.write("".join(f"{text}\n" for text in texts).encode())
