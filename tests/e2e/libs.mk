# End-to-end tests start the built programs; they link the client and the model recipe to drive them.
FARM_TEST := $(B)/obj/tools/client.o $(ORCH) $(TRANSPORT) $(MODEL)
LIBS_test_farm := $(FARM_TEST)
EXT_test_farm := $(EXT_TRANSPORT)
LIBS_test_kill := $(FARM_TEST)
EXT_test_kill := $(EXT_TRANSPORT)
LIBS_test_batch := $(FARM_TEST)
EXT_test_batch := $(EXT_TRANSPORT)
$(B)/tests/e2e/test_farm $(B)/tests/e2e/test_kill $(B)/tests/e2e/test_batch: | $(PROG)
