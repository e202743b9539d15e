"""InstructBLIP in Hugging Face's layout: key names, tensors, configs and tokenizers, translated both ways.

Nothing in here imports LAVIS, and nothing builds a model.
"""
