# Transport tests link the transport; those that speak to the real keeper or orchestrator start the built programs.
LIBS_test_outbox := $(TRANSPORT)
EXT_test_outbox := $(EXT_TRANSPORT)
LIBS_test_outbox_kill := $(B)/obj/tests/transport/keeper_fixture.o $(TRANSPORT)
EXT_test_outbox_kill := $(EXT_TRANSPORT)
LIBS_test_keeper := $(B)/obj/tests/transport/keeper_fixture.o $(TRANSPORT)
EXT_test_keeper := $(EXT_TRANSPORT)
LIBS_test_lifeline := $(TRANSPORT)
EXT_test_lifeline := $(EXT_TRANSPORT)
LIBS_test_members := $(B)/obj/tests/transport/keeper_fixture.o $(TRANSPORT) $(MODEL_LIB)
EXT_test_members := $(EXT_TRANSPORT)
LIBS_test_worker_join := $(B)/obj/tests/transport/keeper_fixture.o $(TRANSPORT) $(MODEL_LIB)
EXT_test_worker_join := $(EXT_TRANSPORT)
LIBS_test_client := $(B)/obj/tools/client.o $(ORCH) $(TRANSPORT) $(MODEL_LIB)
EXT_test_client := $(EXT_TRANSPORT)
$(B)/tests/transport/test_worker_join: | $(B)/bin/llm_worker $(B)/bin/exchange_keeper
LIBS_test_bus := $(TRANSPORT)
EXT_test_bus := $(EXT_TRANSPORT)
$(B)/tests/transport/test_outbox_kill $(B)/tests/transport/test_keeper: | $(B)/bin/exchange_keeper
$(B)/tests/transport/test_members: | $(B)/bin/orchestrator
