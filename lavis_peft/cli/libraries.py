"""What `lavis-peft doctor` looks for: the libraries that are needed, and those that extras bring."""

# Module → distribution, of what LAVIS and the plugin can't do without.
LIBRARIES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "peft": "peft",
    "timm": "timm",
    "numpy": "numpy",
    "omegaconf": "omegaconf",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "iopath": "iopath",
    "pandas": "pandas",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "webdataset": "webdataset",
    "yaml": "pyyaml",
}

# Extra → its modules, and what they bring.
EXTRAS = {
    "demo": (("easy_vqa",), "the pictures and questions of `lavis-peft demo`"),
    "video": (("decord", "einops", "fairscale"), "reading videos, and LAVIS's video encoders"),
    "captions": (("pycocoevalcap", "pycocotools"), "scores of captions: BLEU, CIDEr, METEOR, SPICE"),
    "lemmatize": (("spacy",), "open-ended answers reduced to their dictionary form"),
    "tensorboard": (("tensorboard",), "curves of a run in TensorBoard"),
    "report": (("matplotlib",), "the figures of `lavis-peft report`"),
    "adamss": (("sklearn",), "the tuner ADAMSS, which groups the rows of weights"),
    "quantized": (("bitsandbytes",), "language models in 8 or 4 bits, on a GPU (`model.llm_load_in`)"),
}
