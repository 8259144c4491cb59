# The op suite compares the fast CPU backend with the naive one.
LIBS_test_ops := $(COMPUTE)
EXT_test_ops := $(EXT_COMPUTE)
