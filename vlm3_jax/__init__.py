"""VLM3 in JAX: Qwen3-VL fine-tuned by plain text supervision into a metric 3-D vision model."""

__version__ = "0.1.0"
