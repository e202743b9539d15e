"""How fast the plugin is, beside the research code's procedure and Hugging Face's InstructBLIP, in one process."""
