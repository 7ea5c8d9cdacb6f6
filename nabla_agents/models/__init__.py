"""Local models: prompts, batched rollouts and gradients on any Hugging Face causal language model."""
