/* device.c - names of devices. Pure; any thread. Fails: CF_ERR_UNSUPPORTED. */
#include "common/base/device.h"

#include <stdio.h>
#include <string.h>

cf_err device_parse(const char *text, int *ret_device)
{
    if (strcmp(text, "cpu") == 0) {
        *ret_device = DEVICE_CPU;
        return CF_OK;
    }
    const char *number = strncmp(text, "cuda:", 5) == 0 ? text + 5 : "";
    int value = 0;
    for (const char *c = number; *c; c++)
        value = *c >= '0' && *c <= '9' && value < DEVICES_MAX ? 10 * value + (*c - '0') : DEVICES_MAX;
    if (!*number || value >= DEVICES_MAX)
        return err_set(CF_ERR_UNSUPPORTED, "device \"%s\": expected cpu or cuda:N, N from 0 to %d", text,
                       DEVICES_MAX - 1);
    *ret_device = value;
    return CF_OK;
}

int device_list_count(const char *list)
{
    int count = 1;
    for (const char *c = list; *c; c++)
        count += *c == ',';
    return count;
}

cf_err device_of_instance(const char *list, int instance, char ret_text[DEVICE_TEXT_BYTES], int *ret_device)
{
    const char *item = list;
    for (int skip = instance % device_list_count(list); skip > 0; skip--)
        item = strchr(item, ',') + 1;
    const int bytes = (int)strcspn(item, ",");
    if (bytes >= DEVICE_TEXT_BYTES)
        return err_set(CF_ERR_UNSUPPORTED, "device \"%.*s\": expected cpu or cuda:N, N from 0 to %d", bytes, item,
                       DEVICES_MAX - 1);
    snprintf(ret_text, DEVICE_TEXT_BYTES, "%.*s", bytes, item);
    return device_parse(ret_text, ret_device);
}
