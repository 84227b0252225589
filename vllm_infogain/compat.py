"""Every import of a vLLM internal, so that a new vLLM minor is one file's work.

`tests/test_vllm_contract*.py` check each of these seams against the installed vLLM.
"""

from vllm import envs
from vllm.compilation.breakable_cudagraph import is_breakable_cudagraph_enabled
from vllm.compilation.cuda_graph import CUDAGraphWrapper
from vllm.compilation.monitor import set_cudagraph_capturing_enabled
from vllm.config import CUDAGraphMode, VllmConfig, set_current_vllm_config
from vllm.distributed.parallel_state import graph_capture
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.entrypoints.launchers import app, launcher, run_batch
from vllm.entrypoints.launchers.api_server import entry as api_server_entry
from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses.context import SimpleContext
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.exception_handling.handlers import vllm_error
from vllm.entrypoints.serve.utils.api_utils import (
    load_aware_call,
    should_include_usage,
    validate_json_request,
    with_cancellation,
)
from vllm.entrypoints.serve.utils.sse_keep_alive import with_sse_keep_alive
from vllm.exceptions import RetryableRequestError, VLLMError, VLLMNotFoundError, VLLMValidationError
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.logger import init_logger
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.reload.inplace import reload_weights
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, ImageMediaIO
from vllm.platforms import current_platform
from vllm.renderers import ChatParams, TokenizeParams
from vllm.renderers.hf import HfRenderer
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.sampling_params import _SAMPLING_EPS as SAMPLING_EPS
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import TokenizerRegistry, cached_tokenizer_from_config
from vllm.tracing import instrument_manual
from vllm.utils.gc_utils import freeze_gc_for_cudagraph_capture
from vllm.utils.math_utils import cdiv
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.engine.output_processor import RequestState
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec
from vllm.v1.metrics.loggers import AggregateStatLoggerBase, PrometheusStatLogger, StatLoggerManager
from vllm.v1.metrics.stats import RequestStateStats, SchedulerStats
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output.backend_types import (
    StructuredOutputBackend,
    StructuredOutputGrammar,
    StructuredOutputOptions,
)
from vllm.v1.structured_output.request import get_structured_output_key
from vllm.v1.worker.gpu.attn_utils import (
    build_attn_metadata,
    build_slot_mappings_by_layer,
    get_kv_cache_spec,
    init_attn_backend,
    init_kv_cache,
)
from vllm.v1.worker.workspace import lock_workspace

__all__ = [
    "MEDIA_CONNECTOR_REGISTRY",
    "PAD_SLOT_ID",
    "RENDERER_REGISTRY",
    "SAMPLING_EPS",
    "AggregateStatLoggerBase",
    "AsyncLLM",
    "BaseServing",
    "BatchChatCompletionRequest",
    "BatchDescriptor",
    "BeamSearchOfflineMixin",
    "BeamSearchOnlineMixin",
    "CUDAGraphMode",
    "CUDAGraphWrapper",
    "ChatCompletionRequest",
    "ChatParams",
    "CompletionRequest",
    "CudagraphDispatcher",
    "EngineArgs",
    "EngineCoreEventType",
    "EngineCoreOutput",
    "EngineCoreOutputs",
    "FinishReason",
    "HfRenderer",
    "ImageMediaIO",
    "InputProcessor",
    "KVCacheConfig",
    "KVCacheSpec",
    "LLMEngine",
    "LogprobsLists",
    "ModelRunnerOutput",
    "NewRequestData",
    "OnlineRenderer",
    "OpenAIServingChat",
    "OpenAIServingCompletion",
    "OpenAIServingResponses",
    "ParentRequest",
    "PauseState",
    "PrometheusStatLogger",
    "Request",
    "RequestOutputKind",
    "RequestState",
    "RequestStateStats",
    "RequestStatus",
    "ResponsesRequest",
    "RetryableRequestError",
    "SamplingParams",
    "Scheduler",
    "SchedulerOutput",
    "SchedulerStats",
    "SimpleContext",
    "StatLoggerManager",
    "StructuredOutputBackend",
    "StructuredOutputGrammar",
    "StructuredOutputOptions",
    "TokenizeParams",
    "TokenizerRegistry",
    "VLLMError",
    "VLLMNotFoundError",
    "VLLMValidationError",
    "VllmConfig",
    "api_server_entry",
    "app",
    "build_attn_metadata",
    "build_slot_mappings_by_layer",
    "cached_tokenizer_from_config",
    "cdiv",
    "create_error_response",
    "current_platform",
    "envs",
    "freeze_gc_for_cudagraph_capture",
    "get_kv_cache_spec",
    "get_model_loader",
    "get_structured_output_key",
    "graph_capture",
    "init_attn_backend",
    "init_kv_cache",
    "init_logger",
    "instrument_manual",
    "is_breakable_cudagraph_enabled",
    "launcher",
    "load_aware_call",
    "lock_workspace",
    "parse_model_prompt",
    "reload_weights",
    "run_batch",
    "set_cudagraph_capturing_enabled",
    "set_current_vllm_config",
    "set_forward_context",
    "should_include_usage",
    "validate_json_request",
    "vllm_error",
    "with_cancellation",
    "with_sse_keep_alive",
]
