"""A language model as judge of responses, behind any endpoint that speaks OpenAI's chat completions."""
