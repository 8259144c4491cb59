# End-to-end tests start the built programs; they link the client and the model recipe to drive them.
FARM_TEST := $(B)/obj/tools/client.o $(ORCH) $(TRANSPORT) $(MODEL_LIB)
LIBS_test_farm := $(FARM_TEST)
EXT_test_farm := $(EXT_TRANSPORT)
LIBS_test_kill := $(FARM_TEST)
EXT_test_kill := $(EXT_TRANSPORT)
LIBS_test_batch := $(FARM_TEST)
EXT_test_batch := $(EXT_TRANSPORT)
$(B)/tests/e2e/test_farm $(B)/tests/e2e/test_kill $(B)/tests/e2e/test_batch: | $(PROG)
LIBS_test_disaster := $(FARM_TEST)
EXT_test_disaster := $(EXT_TRANSPORT)
# Sanitizers have to be the first that is loaded.
$(B)/tests/e2e/test_disaster: | $(PROG) $(if $(SAN),,$(B)/tests/e2e/clock_jump.so)
$(B)/tests/e2e/clock_jump.so: tests/e2e/clock_jump.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -fPIC -shared -o $@ $<
LIBS_test_faults := $(FARM_TEST)
EXT_test_faults := $(EXT_TRANSPORT)
$(B)/tests/e2e/test_faults: | $(PROG)
LIBS_test_parole := $(FARM_TEST)
EXT_test_parole := $(EXT_TRANSPORT)
$(B)/tests/e2e/test_parole: | $(PROG)
LIBS_test_enroll := $(MODEL_LIB)
$(B)/tests/e2e/test_enroll: | $(PROG)
