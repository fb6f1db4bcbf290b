"""placeholder"""

if __name__ != "bayeszoo.inference":
    raise ImportError("this folder is the package bayeszoo.inference: write 'import bayeszoo.inference', not 'import inference'")
