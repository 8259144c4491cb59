# The sweeps reach from the model's files to the audio's.
LIBS_test_sweep := $(B)/obj/tests/fault/sweep.o $(ORCH) $(TEXT) $(TRANSPORT) $(MODEL_LIB)
EXT_test_sweep := $(EXT_ORCH) $(EXT_TEXT) $(EXT_TRANSPORT)
LIBS_test_sweep_stages := $(B)/obj/tests/fault/sweep.o $(LLM) $(FLOW) $(HIFT) $(WORKER) $(TRANSPORT) $(MODEL_LIB) $(COMPUTE)
EXT_test_sweep_stages := $(EXT_COMPUTE) $(EXT_TRANSPORT)
LIBS_test_sweep_rows := $(B)/obj/tests/fault/sweep.o $(ORCH) $(TEXT) $(TRANSPORT) $(MODEL_LIB)
EXT_test_sweep_rows := $(EXT_ORCH) $(EXT_TEXT) $(EXT_TRANSPORT)
LIBS_test_sweep_journal := $(B)/obj/tests/fault/sweep.o $(ORCH) $(TRANSPORT) $(MODEL_LIB)
EXT_test_sweep_journal := $(EXT_TRANSPORT)
