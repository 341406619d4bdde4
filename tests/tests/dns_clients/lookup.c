/*
 * What the C library that this is linked with makes of names, a line for each:
 *
 *   lookup [-4 | -6] NAME...   the addresses of each, or the error
 *   lookup -x ADDRESS...       the name of each, or the error
 */
#define _GNU_SOURCE
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#ifndef EAI_NODATA
#define EAI_NODATA -5
#endif

static void failed(int error)
{
	switch (error) {
	case EAI_NONAME: puts(" NONAME"); break;
	case EAI_NODATA: puts(" NODATA"); break;
	case EAI_AGAIN: puts(" AGAIN"); break;
	case EAI_FAIL: puts(" FAIL"); break;
	default: printf(" error:%d\n", error);
	}
}

static void forward(const char *name, int family)
{
	struct addrinfo hints = { .ai_family = family, .ai_socktype = SOCK_STREAM }, *found, *each;
	int error = getaddrinfo(name, NULL, &hints, &found);
	if (error) {
		failed(error);
		return;
	}
	for (each = found; each; each = each->ai_next) {
		char address[64];
		getnameinfo(each->ai_addr, each->ai_addrlen, address, sizeof address, NULL, 0, NI_NUMERICHOST);
		printf(" %s", address);
	}
	puts("");
	freeaddrinfo(found);
}

static void reverse(const char *address)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST }, *parsed;
	char name[NI_MAXHOST];
	int error = getaddrinfo(address, NULL, &hints, &parsed);
	if (!error)
		error = getnameinfo(parsed->ai_addr, parsed->ai_addrlen, name, sizeof name, NULL, 0, NI_NAMEREQD);
	if (error)
		failed(error);
	else
		printf(" %s\n", name);
}

int main(int count, char **words)
{
	int family = AF_UNSPEC, backwards = 0, at = 1;
	if (count > 1 && words[1][0] == '-') {
		family = !strcmp(words[1], "-4") ? AF_INET : !strcmp(words[1], "-6") ? AF_INET6 : AF_UNSPEC;
		backwards = !strcmp(words[1], "-x");
		at = 2;
	}
	for (; at < count; at++) {
		printf("%s", words[at]);
		if (backwards)
			reverse(words[at]);
		else
			forward(words[at], family);
		fflush(stdout);
	}
	return 0;
}
