#!/usr/bin/env bash
# A receiver of callbacks, with openssl and socat. CALLBACK_KEY=whsec_… ./receiver.sh
# For trying out: the key stands in openssl's arguments, where users of the same
# machine can read it.
set -euo pipefail
export LC_ALL=C # lengths are bytes

folder=callbacks # <id> is a callback as it came, <id>.done says that it is handled
max_body=$((32 << 20)) # a result of 8 MiB is up to three times as long when it is encoded
min_key=38 # whsec_ and 24 bytes: an empty key would verify what anybody signs
task_id='^[0-9a-f-]{36}$'

# finish is where your own work goes, with the pairs in names and values. After a
# crash it can run again for the same task.
finish() {
	local id=$1 status=$2 verb i
	case $status in
	COMPLETE) verb="is done" ;;
	FAILED) verb="has failed" ;;
	TIMEOUT) verb="took too long" ;;
	esac
	{
		printf 'task %s %s\n' "$id" "$verb"
		for i in "${!names[@]}"; do printf '%s=%s\n' "${names[i]}" "${values[i]}"; done
	} >&3
}

# parse reads pairs into names and values. A shell has no zero bytes: they are lost.
parse() {
	local name value escaped
	names=() values=()
	# A line for each name and each value, as printf reads it: a backslash stands
	# for itself, + for a space, and %41 is \x41. The dot keeps the last line.
	escaped=$(tr '&' '\n' | sed '/^$/d; /=/!s/$/=/; s/=/\n/
		s/\\/\\\\/g; s/+/ /g; s/%\([0-9A-Fa-f]\{2\}\)/\\x\1/g' && printf '\n.')
	while IFS= read -r name && IFS= read -r value; do
		printf -v "names[${#names[@]}]" %b "$name"
		printf -v "values[${#values[@]}]" %b "$value"
	done <<<"$escaped"
}

# handle finishes a stored task, unless that has been done.
handle() {
	[ ! -e "$folder/$1.done" ] || return 0
	local status
	{
		read -r status
		parse
	} <"$folder/$1"
	finish "$1" "$status"
	: >"$folder/$1.done"
}

# verified says whether the file is signed with our key, less than five minutes ago.
verified() {
	local file=$1 hex signed one
	[[ $at =~ ^[0-9]{1,12}$ ]] || return 1
	((10#$at > EPOCHSECONDS - 300 && 10#$at < EPOCHSECONDS + 300)) || return 1
	hex=$(printf %s "${key#whsec_}" | openssl base64 -d -A | od -An -v -tx1 | tr -d ' \n')
	signed=v1,$({ printf '%s.%s.' "$id" "$at" && cat "$file"; } |
		openssl dgst -sha256 -mac HMAC -macopt "hexkey:$hex" -binary | openssl base64 -A)
	for one in "${given[@]}"; do
		# Of digests: how long it takes says nothing about the signature.
		[ "$(openssl dgst -sha256 <<<"$one")" != "$(openssl dgst -sha256 <<<"$signed")" ] || return 0
	done
	return 1
}

answer() { printf 'HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' "$1"; }

# take reads one request from its input and answers it.
take() {
	local method line name id='' at='' status='' size='' given=() tmp
	read -r method line
	while IFS= read -r line && line=${line%$'\r'} && [ -n "$line" ]; do
		name=${line%%:*} line=${line#*:} line=${line# }
		case ${name,,} in
		webhook-id) id=$line ;;
		webhook-timestamp) at=$line ;;
		webhook-signature) read -ra given <<<"$line" ;;
		x-beam-task-status) status=$line ;;
		content-length) size=$line ;;
		esac
	done
	[ "$method" = POST ] || { answer "405 Method Not Allowed"; return; }
	[[ $size =~ ^[0-9]{1,9}$ ]] && ((10#$size <= max_body)) || { answer "413 Content Too Large"; return; }
	tmp=$(mktemp "$folder/.tmp-XXXXXXXX")
	trap "rm -f '$tmp' '$tmp.body'" EXIT
	head -c "$size" >"$tmp.body"
	verified "$tmp.body" || { answer "401 Unauthorized"; return; }
	[[ $id =~ $task_id && $status =~ ^(COMPLETE|FAILED|TIMEOUT)$ ]] || { answer "400 Bad Request"; return; }
	{ printf '%s\n' "$status" && cat "$tmp.body"; } >"$tmp" && sync "$tmp" || { answer "500 Internal Server Error"; return; }
	if ln "$tmp" "$folder/$id" 2>/dev/null; then # fails if it is there
		answer "204 No Content"
		handle "$id" </dev/null >/dev/null & # socat ends us when the sender leaves
	elif [ -e "$folder/$id" ]; then
		answer "204 No Content" # a repeat: we have it
	else
		answer "500 Internal Server Error" # it comes again
	fi
}

key=${CALLBACK_KEY-}
if ((${#key} < min_key)); then
	echo "CALLBACK_KEY is not a whsec_ key" >&2
	exit 1
fi
if [ "${1-}" = take ]; then
	take # its output is the connection; 3 is where finish writes
	exit
fi
exec 3>&1
mkdir -p -m 700 "$folder"
for file in "$folder"/*; do # what a crash left
	if [[ ${file##*/} =~ $task_id ]]; then handle "${file##*/}"; fi
done
exec socat "TCP-LISTEN:${PORT:-9000},bind=127.0.0.1,reuseaddr,fork,max-children=32" EXEC:"bash $0 take"
