"""The platform's vLLM worker with our runner in place of its own."""

import os
from typing import Any

import torch

from vllm_infogain.compat import current_platform
from vllm_infogain.engine.config_check import check_engine
from vllm_infogain.engine.runner import InfoGainRunner


class DecodesPictures:
    """What a server or an `LLM` may ask of the workers by `collective_rpc`; the first worker alone answers.

    vLLM has it done between two engine steps. An answer is None on every other worker, and where there is no tokenizer
    of pictures.
    """

    model_runner: Any  # an InfoGainRunner; vLLM's workers declare others

    def picture_side(self) -> int | None:
        """Pixels along a side."""
        pictures = self.model_runner.pictures
        return None if pictures is None else pictures.side

    def decode_images(self, codes: list[list[int]]) -> bytes | None:
        """Pixels of pictures, see `Pictures.decode`."""
        pictures = self.model_runner.pictures
        return None if pictures is None else pictures.decode(codes)

    def encode_images(self, picture: bytes) -> list[int] | None:
        """Codes of a picture, see `Pictures.encode`."""
        pictures = self.model_runner.pictures
        return None if pictures is None else pictures.encode(picture)


if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker

    class InfoGainWorker(DecodesPictures, CPUWorker):
        """Two CPU cores or two hundred: everything but the runner is vLLM's."""

        def init_device(self) -> None:
            # oneDNN compiles a matmul for every number of rows it meets and keeps 1,024 of them, some 250 MB.
            os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
            if torch.cpu._is_amx_tile_supported():
                # Without this, bf16 attention with AMX dies of SIGILL on kernels that ask for permission first.
                torch.cpu._init_amx()
            # Where Triton has a CPU backend, vLLM makes its V2 runner, and 0.33 warms that one's kernels up: on ours.
            self.use_v2_model_runner = False
            super().init_device()
            self.model_runner = _make_runner(self)  # type: ignore[assignment]

else:
    from vllm.utils.gc_utils import freeze_gc_heap, maybe_attach_gc_debug_callback
    from vllm.utils.torch_utils import set_random_seed
    from vllm.v1.worker.gpu_worker import Worker
    from vllm.v1.worker.worker_base import CompilationTimes

    class InfoGainWorker(DecodesPictures, Worker):  # type: ignore[no-redef]
        """CUDA. Written against vLLM's worker and never run: no machine of ours has vLLM on a GPU."""

        def _make_model_runner(self) -> InfoGainRunner:  # type: ignore[override]
            return _make_runner(self)

        def compile_or_warm_up_model(self) -> CompilationTimes:
            # There is no kernel of vLLM's samplers to warm up.
            runner, compilation = self.model_runner, self.compilation_config
            runner.profile_run()
            for size in sorted(set(compilation.compile_sizes or ()) - set(compilation.cudagraph_capture_sizes or ())):
                runner._dummy_run(int(size))
            runner.capture_model()
            set_random_seed(self.model_config.seed)
            freeze_gc_heap()  # what exists now stays: no collection need look at it
            maybe_attach_gc_debug_callback()
            return CompilationTimes(
                language_model=compilation.compilation_time, encoder=compilation.encoder_compilation_time
            )


def _make_runner(worker) -> InfoGainRunner:
    check_engine(worker.vllm_config)
    return InfoGainRunner(worker.vllm_config, worker.device, has_pictures=worker.is_driver_worker)
