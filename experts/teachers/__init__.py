"""Teachers: local models that experts are distilled from.

base                 what a teacher is
cnn                  the one that a node trains itself
network              any frozen network as a teacher
capability           a part of a teacher's classes, by the mesh's names

named                from a name to a teacher, by one of
file                 ...  a file that declares its network
efficientnet         ...  a package with weights
timm_models, torchvision_models, transformers_models        ... a library
kinds                what network a declaration names
class_names          names for its columns
weights              tensors from a file, and no pickle
limits               no network larger than its file
packages, hub        what is installed here, and what is in Hugging Face's cache

sections             a teacher's network up to a cut
portable             which of them peers can build
"""
