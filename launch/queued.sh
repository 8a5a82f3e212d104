# The rest of a TPU VM's startup script, which each VM of a slice runs when it boots.  `python -m
# launch.launch --with queued` puts NAME, IMAGE, GENERATION, MOUNT, USER_ID, GRACE, RESTARTS and
# COMMAND before it.  On the host's network, jax finds the other hosts itself.
set -uo pipefail

registry=${IMAGE%%/*}
[[ $registry == *-docker.pkg.dev ]] && gcloud --quiet auth configure-docker "$registry"
code=1
for ((attempt = 0; attempt <= RESTARTS; attempt++)); do
  docker run --rm --name "$NAME" --net=host --privileged --shm-size=16g \
    --stop-timeout "$GRACE" --user "$USER_ID" ${MOUNT:+--volume "$MOUNT:$MOUNT"} \
    ${MOUNT:+--env "SR4_CACHE=$MOUNT/.cache/sr4"} --env "SR4_TPU=$GENERATION" \
    --entrypoint "${COMMAND[0]}" "$IMAGE" "${COMMAND[@]:1}"
  code=$?
  echo "$NAME: exit code $code, attempt $attempt of $RESTARTS"
  # What entrypoint.sh says of its codes; 125 is docker's own: no registry, or no daemon yet.
  ((code == 42 || code == 125 || code >= 127)) || exit "$code"
  sleep "${PAUSE:-10}"
done
exit "$code"
