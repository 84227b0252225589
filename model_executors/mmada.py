"""MMaDA (8B Base, MixCoT): LLaDA by names and arithmetic, with a table that holds the codes of pictures too."""

from vllm_infogain.model_executors.llada import LLaDAModelLM


class MMadaModelLM(LLaDAModelLM):
    """The executor vLLM loads for `architectures: ["MMadaModelLM"]`."""
