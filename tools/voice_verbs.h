/*
 * voice_verbs.h - the two larger verbs of `cosyfarm voice`. argv[0] is the verb; each returns an exit code of cmd.h.
 */
#ifndef CF_TOOLS_VOICE_VERBS_H
#define CF_TOOLS_VOICE_VERBS_H

/* A voice from a recording, made by the program `enroll` beside this one. */
int voice_enroll(int argc, char **argv);

/* Voices to a file of ours or, with --spk2info, of upstream's. */
int voice_export(int argc, char **argv);

#endif
