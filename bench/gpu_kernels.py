"""The kinds of kernels that a step of training launches, by words in their names."""

CONVOLVES = ("conv", "gemm", "cutlass", "xmma", "cudnn", "sm80", "sm90", "wgrad", "dgrad", "fprop")
NORMS = ("batch_norm", "bn_fw", "bn_bw", "batchnorm")
COPIES = ("copy", "memcpy", "memset", "cat", "nchwtonhwc", "nhwctonchw")


def sort_kernel(name: str) -> str:
    """Sort a kernel by its name: convolutions, norms, copies, the optimizer, or elementwise."""
    name = name.lower()
    if any(word in name for word in NORMS):
        return "norms"
    if "adam" in name:
        return "optimizer"
    if any(word in name for word in COPIES):
        return "copies"
    return "convolutions" if any(word in name for word in CONVOLVES) else "elementwise"
