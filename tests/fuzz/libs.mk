# Archives of tests/fuzz programs (LIBS_fuzz_<name>, EXT_fuzz_<name>), as in tests/libs.mk. Programs not named here need
# common/base alone. The corpus of fuzz_<name> is tests/fuzz/corpus/<name>/.
LIBS_fuzz_case := $(patsubst %,$(B)/obj/tools/parity_%.o,case compare sink frame) $(MODEL_LIB)
LIBS_fuzz_vocab := $(TEXT)
EXT_fuzz_vocab := $(EXT_TEXT)
LIBS_fuzz_text := $(TEXT)
EXT_fuzz_text := $(EXT_TEXT)
LIBS_fuzz_manifest := $(patsubst %,$(B)/obj/orchestrator/%.o,id_set line_reader manifest manifest_row manifest_check audio_file) \
                      $(TEXT) $(MODEL_LIB)
EXT_fuzz_manifest := $(EXT_ORCH) $(EXT_TEXT)
FUZZ_TENSORS := $(B)/obj/tests/fuzz/tensors.o $(MODEL_LIB)
LIBS_fuzz_st := $(FUZZ_TENSORS)
LIBS_fuzz_pt := $(FUZZ_TENSORS)
LIBS_fuzz_voice := $(B)/obj/tests/fuzz/voices.o $(MODEL_LIB)
LIBS_fuzz_spk2info := $(B)/obj/tests/fuzz/voices.o $(FUZZ_TENSORS)
LIBS_fuzz_wire := $(TRANSPORT)
EXT_fuzz_wire := $(EXT_TRANSPORT)
LIBS_fuzz_onnx := $(MODEL_LIB)
LIBS_fuzz_wav := $(B)/obj/enroll/audio_read.o
EXT_fuzz_wav := $(EXT_ENROLL)
